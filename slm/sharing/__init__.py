"""Leaving the house: exports and the demo page. Nothing here yet."""
