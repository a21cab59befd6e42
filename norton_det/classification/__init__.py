"""Fine-tuning and accuracy of compressed ResNets as classifiers."""
