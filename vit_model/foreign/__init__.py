"""Read and write other people's weights: timm, Hugging Face, Google, OpenCLIP and others."""
