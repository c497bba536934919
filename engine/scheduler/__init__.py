"""The scheduler: admission, the fair queue, threads and postprocessing. No tensor but finished ones."""
