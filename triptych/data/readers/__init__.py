"""One file for each format on disk; each gives records and says where it skipped what."""
