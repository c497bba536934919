"""Fleet of the measurement: servers and workers with homes of their own, their line, their jobs and versions."""
