"""Learning: scores under teacher forcing, losses, fine-tuning, and gradients through the codec."""
