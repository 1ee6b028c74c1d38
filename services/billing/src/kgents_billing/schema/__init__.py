"""Billing's migrations, in name order; a file that has run is never edited."""
