"""From a stored record to a verdict. Pure: no clock, no network, no chance."""
