"""Small real trainings with one planted fault each: data, networks, faults, the truth on fresh rows, and the runner."""
