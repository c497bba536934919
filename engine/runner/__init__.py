"""One decode step for a batch of images: KV cache, decoder layers, sampling, kernels."""
