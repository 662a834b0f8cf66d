"""VLMo: unified vision-language pre-training with mixture-of-modality-experts (Bao et al. 2022)."""
