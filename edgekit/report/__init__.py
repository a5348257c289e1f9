"""What a build measured, for people (HTML, terminal) and machines (JSON)."""
