"""Front ends beside the first one (:mod:`fxq.graph.trace`), and the choice between them."""
