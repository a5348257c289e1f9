"""Compiling, gathering and checking what runs on a board."""
