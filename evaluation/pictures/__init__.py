"""Sheets, curves and charts."""
