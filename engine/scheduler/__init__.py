"""Who is served next: admission, the fair queue, threads and postprocessing. No tensor but finished ones."""
