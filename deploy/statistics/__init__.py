"""Numbers of a run: from the events of its roles to points in TensorBoard, MLflow, files and the console."""
