//! The contracts between devices and the board.
