"""What the passes that improve accuracy share: layers as matrices, samples of their inputs, tied channels."""
