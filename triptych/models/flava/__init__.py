"""FLAVA: three encoders for pictures, texts and both (Singh et al. 2022)."""
