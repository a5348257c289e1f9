"""How many connections, bytes and joules a token needs, and what it costs to leave some of them out."""
