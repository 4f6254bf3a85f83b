"""Campaigns: the figures that the cache must show under pressure, measured on a real nginx with the module."""
