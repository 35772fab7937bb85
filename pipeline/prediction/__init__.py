"""Run the model on units of patches, on a GPU or on CPUs."""
