"""The discrete variational autoencoder that turns images into codes."""
