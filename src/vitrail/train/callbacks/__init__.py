"""Actions of a run while it trains, one file a kind."""
