"""From a scenario to what will happen: arrivals, cuts, windows. Pure."""
