"""Boards: what their sensors and firmware say, behind one Protocol, whatever way the board is reached."""
