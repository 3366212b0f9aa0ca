"""Figures from arrays, tables and plain values; no model, data set or run folder is known here."""
