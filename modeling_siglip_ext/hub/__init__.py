"""Model cards, results and uploads: what stands beside the weights on the Hub."""
