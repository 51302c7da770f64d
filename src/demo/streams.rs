//! Port-forward and exec, as a kubelet serves them.
