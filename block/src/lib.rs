//! Disk images and the engines that read and write them.
