/*
 * Entry of the multiboot guest and of its other processors, and what little runs in kernel mode.
 *
 * Happy path: 32-bit protected mode, as the loader leaves it → page tables that map the first 4 GiB to themselves →
 * long mode → task register and interrupt table → ring 3, with the right to use ports, where all C code runs. The
 * other processors come from real mode, by a copy of `trampoline` in low memory, and draw a number.
 *
 * Why ring 3: where KVM itself runs without hardware support it emulates a guest's kernel mode, 64-bit user mode
 * runs at full speed. Elsewhere it makes no difference.
 *
 * In kernel mode there are afterwards only wait_handler and wake_handler, for a sleep that another processor ends.
 */
#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 0x00010002 /* wants the memory map; load addresses are in the header */
#define CODE32 0x08
#define DATA 0x10
#define CODE64 0x18
#define USER_DATA 0x2b
#define USER_CODE 0x33
#define FIRST_TSS 0x38
#define STACK_SHIFT 14 /* bytes of stack for each processor and mode, as a power of two */
#define TSS_SHIFT 14 /* of a task state with its map of ports, all of them allowed by zeros */
#define TSS_PORTS 104 /* where that map starts */
#define TSS_LIMIT (TSS_PORTS + 0x10000 / 8)
#define USER_FLAGS 0x0002 /* interrupts are off */
#define TABLE_BYTES 4096 /* of the processor's page tables */

    .section .multiboot, "a"
    .balign 4
header:
    .long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)
    .long header, header, load_end, bss_end, _start

    .data
    .balign 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00af9b000000ffff
    .quad 0
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .skip 16 * CPUS_MAX /* task state descriptors, filled in by each processor */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
gates_pointer:
    .word GATES * 16 - 1
    .quad gates

    .bss
    .balign TABLE_BYTES
top_table:
    .skip TABLE_BYTES
gigabytes:
    .skip TABLE_BYTES
megabytes:
    .skip 4 * TABLE_BYTES
user_stacks:
    .skip CPUS_MAX << STACK_SHIFT
kernel_stacks:
    .skip CPUS_MAX << STACK_SHIFT
tasks:
    .skip CPUS_MAX << TSS_SHIFT
cpus_started: /* without the first */
    .skip 4

/* ---- from 32 bits to 64 ----------------------------------------------------------------------------------- */
    .text
    .code32
    .globl _start
_start:
    cli
    cld
    movl %eax, loader_magic
    movl %ebx, loader_info
    movl $(gigabytes + 7), top_table /* 7: present, writable, user */
    movl $(megabytes + 7), gigabytes
    movl $(megabytes + TABLE_BYTES + 7), gigabytes + 8
    movl $(megabytes + 2 * TABLE_BYTES + 7), gigabytes + 16
    movl $(megabytes + 3 * TABLE_BYTES + 7), gigabytes + 24
    movl $megabytes, %edi
    movl $0x87, %eax /* 0x80: a large page */
1:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    jnc 1b
    lgdt gdt_pointer
    ljmp $CODE32, $2f
2:  xorl %ebp, %ebp
    jmp enter_long_mode

/* Another processor. Those that no stack is left for sleep for ever. */
cpu_start:
    movl $DATA, %eax
    movl %eax, %ds
    movl $1, %ebp
    lock xaddl %ebp, cpus_started
    incl %ebp
    cmpl $CPUS_MAX, %ebp
    jb enter_long_mode
1:  hlt
    jmp 1b

/* %ebp: number of this processor. */
enter_long_mode:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %cr4, %eax
    orl $(1 << 5), %eax /* PAE */
    movl %eax, %cr4
    movl $top_table, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $(1 << 8), %eax /* EFER.LME */
    wrmsr
    movl %cr0, %eax
    orl $(1 << 31), %eax
    movl %eax, %cr0
    ljmp $CODE64, $long_mode

    .code64
long_mode:
    movl %ebp, %edi /* the task state: only the kernel's stack and the ports matter */
    shll $TSS_SHIFT, %edi
    addl $tasks, %edi
    movw $TSS_PORTS, 102(%rdi)
    leal 1(%ebp), %eax
    shll $STACK_SHIFT, %eax
    leal kernel_stacks(%eax), %ecx
    movl %ecx, 4(%rdi)
    leal user_stacks(%eax), %esp
    movl %ebp, %eax /* its descriptor */
    shll $4, %eax
    leal gdt + FIRST_TSS(%eax), %ebx
    movw $TSS_LIMIT, (%rbx)
    movw %di, 2(%rbx)
    shrl $16, %edi
    movb %dil, 4(%rbx)
    movb $0x89, 5(%rbx)
    shrl $8, %edi
    movb %dil, 7(%rbx)
    addl $FIRST_TSS, %eax
    ltr %ax
    lidt gates_pointer
    movq %rsp, %rax
    pushq $USER_DATA
    pushq %rax
    pushq $USER_FLAGS
    pushq $USER_CODE
    pushq $user_mode
    iretq

user_mode:
    movl $USER_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %ebp, %edi
    testl %ebp, %ebp
    jnz 1f
    movl loader_magic, %edi
    movl loader_info, %esi
    call kernel_main
1:  call cpu_main

/* ---- kernel mode ------------------------------------------------------------------------------------------ */
/*
 * General protection: the only one there is comes from a hlt in ring 3, and asks to sleep unless the word at %rdi is
 * %esi already. Interrupts are off until the processor sleeps. On the stack: error code, %rip, …
 */
    .globl wait_handler
wait_handler:
    cmpl %esi, (%rdi)
    je 1f
    sti
    hlt
    cli
1:  incq 8(%rsp) /* past the hlt */
    addq $8, %rsp
    iretq

/* All that the interrupt does is to end the hlt. */
    .globl wake_handler
wake_handler:
    pushq %rax
    movl $0xfee000b0, %eax /* end of interrupt, at the local APIC */
    movl $0, (%rax)
    popq %rax
    .globl ignore_handler
ignore_handler:
    iretq

/* ---- from real mode --------------------------------------------------------------------------------------- */
    .section .rodata
    .globl trampoline, trampoline_end
    .code16
trampoline:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl trampoline_gdt - trampoline + TRAMPOLINE_ADDRESS
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $CODE32, $cpu_start
trampoline_gdt:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

    .data
loader_magic:
    .long 0
loader_info:
    .long 0
    .section .note.GNU-stack, "", @progbits
