"""Methods that look at what the target becomes without parts of the input."""
