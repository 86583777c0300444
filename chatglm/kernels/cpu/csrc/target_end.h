/* Include at the end of a file that included a target_*.h. */
#if defined(__clang__)
#pragma clang attribute pop
#endif
