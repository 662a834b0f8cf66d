"""Many processes: how they start and meet, and what they tell each other."""
