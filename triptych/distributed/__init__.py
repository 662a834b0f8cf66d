"""Many processes: environment, meshes, collectives, sharding. Empty while one process trains."""
