//! End to end, on the cluster that KUBECONFIG names.

fn main() {}
