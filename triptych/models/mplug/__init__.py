"""mPLUG: vision-language learning by cross-modal skip-connections (Li et al. 2022)."""
