"""The discrete variational autoencoder that turns pictures into codes."""
