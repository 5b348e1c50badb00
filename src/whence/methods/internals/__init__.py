"""Methods that read values inside the model."""
