/* SPDX-License-Identifier: 0BSD */
/*
 * Tests that run inside a guest, each from the same snapshot; pytest collects
 * them. pyproject.toml says with which of the kernel's files they are linked.
 */
#include <test.h>

#include <kernel.h>

TEST(gcd_of_coprimes)
{
    EXPECT_EQ(gcd(9, 28), 1);
}

TEST_PARAMS(gcd_with_zero, uint32_t, 0, 1, 4294967295)
{
    EXPECT_EQ(gcd(param, 0), param);
    EXPECT_EQ(gcd(0, param), param);
}

TEST(numbers)
{
    uint32_t value = 0;

    ASSERT_TRUE(parse_number("4294967295", &value));
    EXPECT_EQ(value, UINT32_MAX);
}

TEST_PARAMS(no_numbers, const char *, "", "-1", "12x", "4294967296")
{
    uint32_t value;

    EXPECT_FALSE(parse_number(param, &value));
}
