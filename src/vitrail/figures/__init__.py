"""Figures from arrays, tables and plain values; no model, data set or run folder is known here."""

import matplotlib

# Names of classes and runs are text, whatever signs they hold.
matplotlib.rcParams["text.parse_math"] = False
# The same figure gives the same bytes, so that a regenerated page shows the real changes.
matplotlib.rcParams["svg.hashsalt"] = "vitrail"
