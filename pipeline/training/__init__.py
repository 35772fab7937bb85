"""Train the model with Ray Train."""
