"""The mathematics: CP decomposition of filters, in the metric of the weights and in that of the outputs."""
