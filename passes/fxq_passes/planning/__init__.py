"""Questions that planning passes ask."""
