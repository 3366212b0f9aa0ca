"""Settings that a recipe leaves to "auto", found by short trials."""
