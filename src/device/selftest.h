/* device/selftest.h - checks a device against the CPU, for people who have one that we have not.
 *
 * Every operator over shapes that a model has and over odd ones, each a second time at other
 * addresses, every dtype and layout of weights, copies of all kinds, and the order that events
 * bring about. Takes well under a minute. */
#ifndef LIGHTER_DEVICE_SELFTEST_H
#define LIGHTER_DEVICE_SELFTEST_H

#include <jansson.h>

#include "base/log.h"
#include "device/device.h"

/* Both devices are idle and have 128 MiB to spare. A log line for each check. The report is a JSON
 * object that the caller owns:
 *   device, reference                       descriptions
 *   passed, failed, unsupported             how many checks
 *   checks    [{check, result, error, bound, reason}]
 *             result "passed" or "failed": error and bound are relative to the largest element that
 *             is wanted; "unsupported": the device says so, in reason
 *   same_bits [{op, in_any_batch}]          whether a row's bits depend on the rows beside it;
 *                                           nothing fails because of that
 *   link_bytes_per_s, matmul_bytes_per_s, matmul_flops_per_s      measured; 0: not
 * An error of the device ends the checks; it is the reason of the last one, which has failed. */
json_t *device_selftest(struct device *device, struct device *reference, const struct log *log);

#endif
