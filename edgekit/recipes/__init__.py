"""Recipes by name: data only."""
