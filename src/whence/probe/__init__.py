"""The three questions put to a model: observe, respond, differentiate. The only room that opens traces."""
