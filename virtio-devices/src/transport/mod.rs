//! How a virtio device reaches its driver.
