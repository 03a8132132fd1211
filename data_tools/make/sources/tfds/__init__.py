"""Read data sets as TensorFlow Datasets prepares them (TFRecord files), and the tasks of VTAB that are defined on them."""
