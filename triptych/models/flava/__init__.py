"""FLAVA: three encoders for images, texts and both (Singh et al. 2022)."""
