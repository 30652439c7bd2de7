"""Do two models compute the same? Running them alike, and how far outputs may be apart."""
